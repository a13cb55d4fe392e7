"""Numbers do not depend on the context in which a caller has torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import pytest
import torch

import lens_slt as ls
from tests.tiny_models import native, wrapped_gemma2

CONTEXTS: dict[str, Callable[[], AbstractContextManager]] = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
}
MODELS = {"native": lambda: native(attn_only=False), "gemma2": wrapped_gemma2}


def numbers(model: torch.nn.Module, tokens: torch.Tensor, engine: str) -> list[float]:
    settings = ls.Settings(draws=3, burn_in=2, chains=2, batch_size=4)
    draws = ls.sample(
        model, tokens, ["L0H1", "L1MLP"], settings=settings, engine=engine, progress=False
    )
    effect = ls.ablate(model, tokens, "L0H1")["effect"].values
    return [*ls.refined_llc(draws)["llc"].values.tolist(), float(effect.mean())]


def some_tokens() -> torch.Tensor:
    return torch.randint(1, 49, (8, 12), generator=torch.Generator().manual_seed(0))


@cache
def expected(name: str, engine: str) -> list[float]:
    """The numbers without a context, which is the same for all of them."""
    return numbers(MODELS[name](), some_tokens(), engine)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    ("name", "engine"), [("native", "auto"), ("native", "modules"), ("gemma2", "auto")]
)
def test_numbers_are_those_without_a_context(name: str, engine: str, context: str) -> None:
    without, model, tokens = expected(name, engine), MODELS[name](), some_tokens()
    with CONTEXTS[context]():
        assert numbers(model, tokens.to("cpu").clone(), engine) == without


@pytest.mark.parametrize("context", CONTEXTS)
def test_functions_are_sampled_as_without_a_context(context: str) -> None:
    def llc() -> float:
        few = ls.Settings(draws=8, burn_in=2, chains=2, steps_per_draw=1)
        loss = lambda v: torch.einsum("ci,ij,cj->c", v, hessian, v) / 2  # noqa: E731
        return ls.refined_llc(ls.sample_function(loss, point, settings=few))["llc"].item()

    hessian, point = torch.diag(torch.tensor([1.0, 2, 3])), torch.zeros(3)
    without = llc()
    with CONTEXTS[context]():
        assert llc() == without


def test_every_public_function_that_takes_a_model_is_guarded() -> None:
    functions = {name: getattr(ls, name) for name in ls.__all__}
    functions = {name: one for name, one in functions.items() if inspect.isfunction(one)}
    takers = {
        name
        for name, function in functions.items()
        if next(iter(inspect.signature(function).parameters), "") == "model"
    } - {"model_source"}  # describes a model and runs none
    assert {"sample", "ablate", "cross_check"} <= takers
    for name in takers:
        source = Path(inspect.getfile(inspect.unwrap(functions[name]))).read_text()
        assert f"@plain_torch\ndef {name}(" in source
