"""Every sampler keeps the protocol, whatever it is called."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_slt
from lens_slt.sampling.metric import Metric, identity
from lens_slt.sampling.randomness import derived_generator
from lens_slt.sampling.registry import SAMPLERS
from lens_slt.sampling.sampler import Chains, Sampler, coupled_virial, join, tensors
from lens_slt.sampling.settings import Settings
from tests.made_targets import MadeTarget, quadratic, run, steep

EVERY = pytest.mark.parametrize("name", list(SAMPLERS))
N, CHAINS, P = 3, 4, 20
H = torch.linspace(0.5, 20.0, P)


class Quadratic:
    """½ Σ h·u², on a minibatch and on everything."""

    def minibatch(self, u):
        return self.everything(u), H * u

    def everything(self, u):
        return (H * u.square()).sum(-1) / 2


def chains(n=N, *, burning_in=False, seed=0, step_size=1e-3, dtype=torch.float32) -> Chains:
    """Antithetic chains of components 0 to n − 1, each with noise of its own."""

    def noise(step):
        own = [derived_generator("cpu", seed, i, step) for i in range(n)]
        rows = [torch.randn(CHAINS // 2, P, dtype=dtype, generator=g) for g in own]
        return torch.stack([torch.stack([x, -x], 1).flatten(0, 1) for x in rows])

    return Chains(
        n_beta=30.0, gamma=200.0, n_chains=CHAINS,
        step_size=torch.full((n, 1, 1), step_size, dtype=dtype),
        metric=identity(torch.zeros(n, P, dtype=dtype)), burning_in=torch.full((n,), burning_in),
        noise=noise, uniform=lambda step: noise(step)[..., 0].abs() % 1,
    )  # fmt: skip


@EVERY
def test_members(name):
    sampler = SAMPLERS[name]
    for member in Sampler.__annotations__:
        assert hasattr(sampler, member), member
    methods = [m for m in vars(Sampler) if not m.startswith("_") and callable(getattr(Sampler, m))]
    assert {"init", "step", "draw_weights", "prior_inflation"} <= set(methods)
    for method in methods:
        assert callable(getattr(sampler, method)), method
    assert sampler.default_step_size(200.0) > 0
    assert sampler.default_burn_in(200.0, sampler.default_step_size(200.0), 200) >= 0
    assert not (sampler.CHOOSES_STEP and sampler.EXACT)


@EVERY
def test_a_state_is_frozen_and_made_of_tensors_by_component_and_chain(name):
    sampler = SAMPLERS[name]
    state = sampler.init(torch.zeros(N, P), chains(), 0)
    assert isinstance(state, sampler.State)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(state, dataclasses.fields(state)[0].name, None)
    following, seen = sampler.step(state, Quadratic(), chains(), 0)
    for values in (*tensors(state).values(), *tensors(following).values()):
        assert values.shape[:2] == (N, CHAINS)
    assert tensors(state).keys() == tensors(following).keys()
    assert seen.u.shape == (N, CHAINS, P)
    assert seen.loss.shape == (N, CHAINS)
    torch.testing.assert_close(seen.loss, Quadratic().everything(seen.u), rtol=1e-5, atol=1e-7)
    certified = not sampler.EXACT and not sampler.NO_CERTIFICATE
    for value in (seen.virial, seen.defect):
        assert (value is not None) == certified
        assert value is None or value.shape == (N, CHAINS)


def advance(sampler, state, made, first, last):
    seen = []
    for step in range(first, last):
        state, found = sampler.step(state, Quadratic(), made, step)
        seen.append(found.u)
    return state, seen


@EVERY
def test_pairs_stay_opposite_on_an_even_loss(name):
    """Accept/reject decisions are a chain's own: of ``pcn`` only the proposals are opposite."""
    sampler = SAMPLERS[name]
    made = chains()
    _, seen = advance(sampler, sampler.init(torch.zeros(N, P), made, 0), made, 0, 20)
    opposite = 0
    for u in seen:
        free = u[:, ::2].norm(dim=-1) > 0
        opposite += int(torch.isclose(u[:, ::2], -u[:, 1::2], atol=1e-6).all(-1)[free].sum())
    assert opposite > (20 if sampler.EXACT else 19 * N * CHAINS / 2 - 1)


@EVERY
def test_a_step_does_not_depend_on_the_company(name):
    """Bit-equal: rows of a state joined from parts go on as they would have on their own."""
    sampler = SAMPLERS[name]
    alone, together = chains(2), chains(3)
    first, _ = advance(sampler, sampler.init(torch.zeros(3, P), together, 0), together, 0, 5)
    own, seen = advance(sampler, join(first, [0, 1], None), alone, 5, 12)
    both, all_seen = advance(sampler, first, together, 5, 12)
    for key, values in tensors(own).items():
        assert torch.equal(values, tensors(both)[key][:2]), key
    for a, b in zip(seen, all_seen, strict=True):
        assert torch.equal(a, b[:2])


@EVERY
def test_the_precision_is_that_of_the_weights(name):
    sampler = SAMPLERS[name]
    made = chains(dtype=torch.float64)

    class Double(Quadratic):
        def everything(self, u):
            return (H.double() * u.square()).sum(-1) / 2

    state = sampler.init(torch.zeros(N, P, dtype=torch.float64), made, 0)
    for step in range(3):
        state, seen = sampler.step(state, Double(), made, step)
    for values in (*tensors(state).values(), seen.u, seen.loss):
        assert values.dtype == torch.float64


def test_rows_of_two_states_are_joined_in_order():
    sampler = SAMPLERS["lm"]
    old = sampler.init(torch.zeros(3, P), chains(3), 0)
    new = sampler.init(torch.zeros(1, P), chains(1, seed=1), 7)
    joined = join(old, [2, 0], new)
    for key, values in tensors(joined).items():
        expected = [tensors(old)[key][2], tensors(old)[key][0], tensors(new)[key][0]]
        assert torch.equal(values, torch.stack(expected))


@EVERY
def test_weights_of_draws(name):
    """All alike, or those of exp(−nβ·ΔL): on light tails the smoothed ones are the plain ones."""
    found = SAMPLERS[name].draw_weights(np.zeros(40), 30.0)
    rng = np.random.default_rng(0)
    loss = 0.02 * rng.random(2000)
    weights = SAMPLERS[name].draw_weights(loss, 30.0)
    if name != "importance":
        assert found is None and weights is None
        return
    np.testing.assert_allclose(found[0], 1 / 40)
    plain = np.exp(-30 * loss)
    np.testing.assert_allclose(weights[0], plain / plain.sum(), rtol=0.02)
    assert weights[1] == ""
    control = SAMPLERS[name].draw_weights(loss, 0.0)
    np.testing.assert_allclose(control[0], 1 / 2000)


def test_no_other_module_asks_for_a_sampler_by_name():
    """Comparisons with a sampler's name, or a look-up of one, outside its own module."""
    root = Path(lens_slt.__file__).parent
    asked = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            compared = isinstance(node, ast.Compare | ast.MatchValue | ast.Subscript)
            for constant in ast.walk(node) if compared else ():
                if isinstance(constant, ast.Constant) and constant.value in SAMPLERS:
                    asked.append(f"{path.relative_to(root)}:{constant.lineno}")
    assert not asked


# Runs of several components ----------------------------------------------------------------------


@EVERY
def test_a_run_is_the_same_in_other_company(name):
    """Bit-equal, also where components take steps of different sizes and end at different times."""
    settings = Settings(sampler=name, draws=60, burn_in=4, chains=2, thin=7)
    losses = [{"a": quadratic(0.3 * H), "b": steep}, {"c": quadratic(0.1 * H)}]
    together = run(MadeTarget(losses, P, settings, probes=True))
    strides = together["steps_per_draw"].values
    assert strides[0] == 1 and (strides[1] > 1) == settings.method.CHOOSES_STEP
    for group, component in (("a", 0), ("b", 0), ("c", 1)):
        own = {group: losses[component][group]}
        alone = run(MadeTarget([own], P, settings, probes=True))
        for path in ("/", "posterior", "burn_in", "probes/squares", "health"):
            a, b = alone[path].to_dataset(), together[path].to_dataset()
            b = b.sel(component=[group])
            if "draw" in b.sizes:
                b = b.isel(draw=slice(a.sizes["draw"]))
            for key in a.data_vars:
                np.testing.assert_array_equal(a[key].values, b[key].values, err_msg=str(key))


@pytest.mark.slow
@EVERY
def test_an_interrupted_run_resumes_bit_equal(name, tmp_path, monkeypatch):
    settings = Settings(sampler=name, draws=60, burn_in=4, chains=2, thin=7)
    target = MadeTarget([{"a": quadratic(H), "b": steep}], P, settings, probes=True)
    whole = run(target, tmp_path / "whole")
    for step in (3, 17, 41):

        def stop(book, step=step):
            if book.step == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(target, tmp_path / "parts", stop)
    resumed = run(target, tmp_path / "parts")
    for path in ("/", "posterior", "burn_in", "probes/squares", "health"):
        a, b = whole[path].to_dataset(), resumed[path].to_dataset()
        for key in a.data_vars:
            np.testing.assert_array_equal(a[key].values, b[key].values, err_msg=str(key))


def test_a_preconditioner_row_belongs_to_its_component():
    """After components have left, the metric of those that stay is still their own."""
    scale = torch.tensor([[1.0], [0.25], [0.04]])
    metric = Metric(scale, torch.eye(P)[:1].expand(3, 1, P))
    x = torch.ones(2, 1, P)
    found = metric.rows([2, 1]).apply(x, 0.5)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([0.2, 0.5]))
    assert (found[:, 0, 1:] == 1).all()


# The coupled virial ------------------------------------------------------------------------------


def test_the_defect_of_many_weights_is_right_in_single_precision():
    """10⁶ weights close to their prior chain: the defect is 10⁻⁵ of either square."""
    p, gamma, n_beta = 10**6, 200.0, 30.0
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 2, p, generator=generator, dtype=torch.float64) / gamma**0.5
    h = torch.zeros(p, dtype=torch.float64)
    h[:20] = 5.0
    u = z * (gamma / (gamma + n_beta * h)) ** 0.5
    u = u + 1e-6 * torch.randn(p, generator=generator, dtype=torch.float64)
    exact_virial, exact = coupled_virial(u, z, h * u, n_beta, gamma)
    virial, defect = coupled_virial(u.float(), z.float(), (h * u).float(), n_beta, gamma)
    assert gamma * float(u.square().sum()) > 1e6
    torch.testing.assert_close(virial.double(), exact_virial, rtol=1e-5, atol=0)
    assert (defect.double() - exact).abs().max() < 2e-3
    naive = virial + gamma * (u.float().square().sum(-1) - z.float().square().sum(-1))
    assert (naive.double() - exact).abs().max() > 0.02  # what the factors are for


def test_book_counts_the_steps_of_all_components():
    settings = Settings(sampler="sgld", draws=5, burn_in=2, chains=2)
    shares = []
    target = MadeTarget([{"a": quadratic(H)}, {"b": quadratic(H)}], P, settings)
    run(target, on_step=lambda book: shares.append(book.share))
    assert shares == [(2 * i, 14) for i in range(1, 8)]
