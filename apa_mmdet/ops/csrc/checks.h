// Checks of an operator's arguments.
#pragma once

#include "arguments.h"

namespace apa {

// The non-negative axis of x's channels; `channel_dim` as in apa_mmdet.ops.apa.
int64_t channel_axis(const Tensor& x, std::optional<int64_t> channel_dim);

// Throws TypeError or ValueError for arguments that do not fit each other.
void check(const Arguments&);

}  // namespace apa
