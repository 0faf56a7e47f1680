// What may be wrong with an operator's arguments.
#pragma once

#include "arguments.h"

namespace apa {

// The axis of x's channels, from 0 on; `channel_dim` as in apa_mmdet.ops.apa.
int64_t channel_axis(const Tensor& x, std::optional<int64_t> channel_dim);

// Throws TypeError or ValueError for arguments that do not fit each other.
void check(const Arguments&);

}  // namespace apa
