r"""Next-token prediction with a learnable activation, on Python's own documentation.

    python examples/language_model.py --model llama   # SwiGLU: SiLU(gate(x)) * up(x)
    python examples/language_model.py --model gpt2    # GELU

A small Llama or GPT-2 is built from its configuration class in transformers and trained
from scratch, as it is and with every activation converted to an AGLU. A converted model
starts as the unconverted one: exactly for SiLU, approximately for GELU.

The text is on every machine with Python, some 2 MB: the docstrings of the standard
library, a document for each module, the language reference behind ``help()``
(``pydoc_data.topics``) and Python's licence. Every 20th document is held out, and its
paragraphs are removed from the others, because some topics repeat each other. Tokens
are a byte-pair encoding of 512 entries, fitted to the training text. The text and
therefore the loss depend on the version of Python.

It needs ``pip install '.[examples]'`` and takes about 5 minutes on one core.
"""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import torch
from comparison import compare, make_parser, positive
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from apa_mmdet.conversion import convert_activations
from apa_mmdet.optim import param_groups

CONTEXT, BATCH, VOCABULARY = 128, 8, 512
SPECIAL = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)  # unused


def read_documents(limit: int | None) -> list[str]:
    """Return the first documents, or all, in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    sources: dict[str, Path | str] = dict(topics)
    for path in [*library.rglob("*.py"), *library.glob("LICENSE.txt")]:
        name = path.relative_to(library)
        if not {"test", "tests", "site-packages"} & set(name.parts):
            sources[str(name)] = path
    documents = []
    for name in sorted(sources)[:limit]:
        source = sources[name]
        documents.append(source if isinstance(source, str) else read(source))
    return [document for document in documents if document]


def read(path: Path) -> str:
    """Return a text file, or all docstrings of a Python file."""
    text = path.read_text("utf-8", errors="replace")
    if path.suffix != ".py":
        return text
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))


def read_tokens(limit: int | None) -> tuple[Tensor, Tensor]:
    """Return the tokens of the training text and of the held-out text."""
    documents = read_documents(limit)
    held_out = "\n\n".join(documents[::20]).split("\n\n")
    del documents[::20]
    seen = set(held_out)
    others = [p for p in "\n\n".join(documents).split("\n\n") if p not in seen]
    texts = ["\n\n".join(others), "\n\n".join(held_out)]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts[:1], VOCABULARY, show_progress=False)
    train, test = (torch.tensor(tokenizer.encode(text).ids) for text in texts)
    return train, test


def build_llama() -> nn.Module:
    """Return a Llama of 0.5 M parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **SPECIAL,
    )
    return LlamaForCausalLM(config)


def build_gpt2() -> nn.Module:
    """Return a GPT-2 of 0.5 M parameters."""
    no_dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=96,
        n_layer=4,
        n_head=4,
        n_positions=CONTEXT,
        **no_dropout,
        **SPECIAL,
    )
    return GPT2LMHeadModel(config)


def train(model: nn.Module, tokens: Tensor, steps: int) -> None:
    """Train a model on random windows of the tokens."""
    optimizer = torch.optim.AdamW(
        param_groups(model, weight_decay=0.1), lr=3e-3, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    for _ in range(steps):
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
        optimizer.zero_grad()
        next_token_loss(model, tokens[starts + torch.arange(CONTEXT + 1)]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def next_token_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy per token in nats, for windows (N, CONTEXT + 1)."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor) -> float:
    """Return the loss on all windows of the held-out text."""
    model.eval()
    windows = tokens.unfold(0, CONTEXT + 1, CONTEXT)
    losses = [next_token_loss(model, w) * len(w) for w in windows.split(BATCH)]
    return sum(losses).item() / len(windows)


def main(argv: list[str] | None = None) -> dict:
    """Run the comparison and return its runs."""
    parser = make_parser(__doc__, steps=500)
    parser.add_argument("--model", choices=["llama", "gpt2"], default="llama")
    parser.add_argument("--documents", type=positive, help="to read (default: all)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    train_tokens, test_tokens = read_tokens(args.documents)
    if min(len(train_tokens), len(test_tokens)) <= CONTEXT:
        parser.error(f"--documents {args.documents}: too little text, expected more")

    def measure(model: nn.Module) -> dict[str, float]:
        train(model, train_tokens, args.steps)
        return {"loss per token": held_out_loss(model, test_tokens)}

    return compare(
        build=build_llama if args.model == "llama" else build_gpt2,
        train=measure,
        variants={
            "SiLU" if args.model == "llama" else "GELU": None,
            "AGLU": convert_activations,
        },
        output=lambda model: model(input_ids=test_tokens[None, :CONTEXT]).logits,
        seeds=args.seeds,
    )


if __name__ == "__main__":
    main()
