"""The schema of every result: its variables, their dimensions in order, and its version.

A result is what a function of lens_slt returns as an :class:`xarray.Dataset`, ``DataArray`` or
``DataTree``. Its attribute ``result`` is its name in :data:`SCHEMAS`, ``schema`` the version of the
schema it was made by. Any result may carry :data:`LEADING` dimensions in front, for several
checkpoints or models at once. The functions that make results end in :func:`stamped`, those that
read them begin with :func:`require`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, TypeVar

import xarray as xr

LEADING = ("checkpoint", "model")
MATRICES = ("per_token_llc", "susceptibility")  # of tokens × components
MOST_SAID = 3  # of what is wrong with a result

Dims = tuple[str, ...]
Result = TypeVar("Result", xr.Dataset, xr.DataArray, xr.DataTree)


@dataclass(frozen=True)
class Schema:
    """What a result holds. More may be there.

    A variable of a tree is named with its group, ``posterior/paired_loss``; ``*`` is every group
    at that place. A dimension may be one of two, ``mode|component``. The one variable of a
    DataArray has the name of the result.
    """

    name: str
    made_by: str  # the function
    needed: Mapping[str, Dims]
    optional: Mapping[str, Dims] = field(default_factory=dict)
    attrs: Dims = ()  # that readers need
    kind: type = xr.Dataset
    version: int = 1
    of_a_run: bool = False  # one result of all checkpoints, whose dimension needs no choice

    @property
    def variables(self) -> dict[str, Dims]:
        """All that is declared."""
        return {**self.needed, **self.optional}


def over(dims: str, names: str) -> dict[str, Dims]:
    """Variables with the same dimensions; both as words."""
    return dict.fromkeys(names.split(), tuple(dims.split()))


_TOKEN = over("token", "sequence position token_id")
_ROOT = (
    "n_parameters n_draws step_size steps_per_draw curvature prior_loss prior_loss_se choice "
    "bias bias_se"
)
_CERTIFICATE = "certificate why defect defect_se defect_share defect_share_se"
_BEHAVIOUR = (
    "previous_token current_token first_token duplicate_token prefix_matching induction ngram "
    "skip_gram"
)


def _each(words: str, form: str) -> str:
    """Every word put into ``form``."""
    return " ".join(form.replace("{}", word) for word in words.split())


def _with_interval(name: str) -> str:
    """A quantity and the ends of its interval."""
    return f"{name} {name}_low {name}_high"


def _with_errors(words: str) -> str:
    """Quantities and their standard errors."""
    return _each(words, "{} {}_se")


def _matrix(name: str, quantities: str) -> Schema:
    """Of tokens × components."""
    return Schema(
        name, name, attrs=("quantity", "probe"),
        needed=over("component token", f"{quantities} se") | _TOKEN | over("token", "base_loss")
        | over("component", "split_half reliability mean mean_se rms_se verdict"),
        optional=over("block component token", "blocks") | over("component", "step_size n_draws"),
    )  # fmt: skip


_SPECTRUM = "llc se certificate why prior_loss " + _with_errors(
    "variance gap identity stiffness effective_directions"
)
SCHEMAS: dict[str, Schema] = {
    schema.name: schema
    for schema in (
        Schema(
            "draws", "sample", kind=xr.DataTree, attrs=("settings",),
            needed=over("component", _ROOT)
            | over(
                "component chain draw",
                "posterior/paired_loss posterior/squared_distance posterior/step_loss "
                "posterior/virial posterior/defect",
            )
            | over("component chain interval", "burn_in/paired_loss")
            | over("component chain", "health/verdict health/used")
            | over("component", "health/rhat health/summary")
            | over("component", _each(_CERTIFICATE, "health/{}"))
            | over("component chain draw sequence position", "probes/*/paired_loss")
            | over("sequence position", "probes/*/base_loss probes/*/tokens probes/*/weight"),
            optional=over("component chain draw", "posterior/full_loss"),
        ),
        Schema(
            "refined_llc", "refined_llc", attrs=("settings",),
            needed=over("component", "llc se mean_paired_loss ess rhat chains_used verdict")
            | over("component", f"{_CERTIFICATE} {_ROOT}"),
            optional=over("component probe", "probe_llc probe_se probe_text_se")
            | over("block component", "blocks") | over("block component probe", "probe_blocks"),
        ),
        Schema(
            "refined_observable", "refined_observable", attrs=("settings", "probe"),
            needed=over("component observable", "expectation shift se text_se")
            | over("observable", "base") | over("component", "certificate verdict"),
        ),
        Schema(
            "response", "response", attrs=("observable", "shift"),
            needed=over(
                "component strength",
                "first first_se second second_se predicted predicted_se reweighted reweighted_se "
                "ess reliable",
            ) | over("component", "certificate"),
        ),
        _matrix("per_token_llc", "llc"),
        _matrix("susceptibility", "chi mean_term covariance_term"),
        Schema(
            "modes", "modes", attrs=("quantity",),
            needed=over("mode token", "score") | over("mode component", "loading")
            | over("mode", "explained") | _TOKEN | over("token", "base_loss"),
            optional=over("mode component", "loading_low loading_high")
            | over("mode", "explained_low explained_high angle subspace_angle verdict")
            | over("token", "text"),
        ),
        Schema(
            "enrichment", "enrichment", attrs=("quantity",),
            needed=over("mode|component pattern", "auc low high p q")
            | over("pattern", "n_tokens n_sequences"),
        ),
        Schema(
            "development", "develop", kind=xr.DataTree, of_a_run=True,
            attrs=("run", "unit", "settings"),
            needed=over("component", "refined_llc/llc refined_llc/se"),
        ),
        Schema(
            "sublosses", "develop", attrs=("tokens_hash",),
            needed=over("probe pattern", "loss se n_tokens"),
            optional=over("block probe pattern", "blocks"),
        ),
        Schema(
            "head_trajectories", "head_trajectories", of_a_run=True,
            attrs=("verdict",),
            needed=over("component", "cluster sure") | over("component other_component", "together")
            | over("label", "size") | over("label refinement", "centre")
            | over("variant component", "variant_cluster")
            | over("variant", "stability silhouette method scaling scope")
            | over("variant other_variant", "agreement") | over("", "p_noise p_continuum"),
            optional=over("component", "head_type") | over("variant", "variant_type_ari")
            | over("", "type_ari type_ari_low type_ari_high type_p type_p_in_layers"),
        ),
        Schema(
            "differentiation", "differentiation", of_a_run=True,
            attrs=("against",),
            needed=over(
                "component refinement",
                "step step_low step_high support side verdict excess excess_se p band_low "
                "band_high",
            ) | over("component", "first_refinement"),
        ),
        Schema(
            "migration", "migration", of_a_run=True,
            attrs=("verdict", "probe", "before_step", "after_step"),
            needed=over(
                "component", "llc se before after change change_low change_high p word"
            ),
            optional=over(
                "when component pattern", "effect effect_se affected_share affected_share_se"
            ) | over("pattern", "token_share") | over(
                "component pattern",
                "effect_change effect_change_se effect_change_low effect_change_high "
                "effect_change_p effect_word",
            ),
        ),
        Schema(
            "mode_development", "mode_development", of_a_run=True,
            attrs=("quantity",),
            needed=over("mode", "step step_low step_high support verdict")
            | over(
                "mode", "angle correlation loading_span_angle token_span_angle explained",
            )
            | over("mode component", "loading") | over("mode token", "score") | _TOKEN,
            optional=over("mode", "angle_low angle_high correlation_low correlation_high"),
        ),
        Schema(
            "pattern_influence", "pattern_influence", of_a_run=True,
            needed=over(
                "query source",
                "influence se correlation correlation_se effect flips peak peak_low peak_high "
                "peak_ratio",
            ),
        ),
        Schema(
            "construction", "construction", of_a_run=True,
            attrs=("run", "unit", "units", "least_effect", "sequences", "level"),
            needed=over("part context", f"effect {_each('se low high', 'effect_{}')}")
            | over("part", "behaviour behaviour_se head_type behaves_as behaves_least")
            | over("part", f"alone {_each('se low high share', 'alone_{}')}")
            | over("part", "composition composition_q share share_se verdict reasons")
            | over("part criterion", "onset onset_low onset_high")
            | over("part", "kind circuit piece pattern"),
        ),
        Schema(
            "locality", "locality", attrs=("gain", "gain_se", "n_weights", "target"),
            needed=over("ranking share", "kept kept_low kept_high")
            | over("ranking", "smallest_share smallest_share_low smallest_share_high")
            | over("", "null_kept"),
        ),
        Schema(
            "weight_change", "weight_change",
            needed=over("component matrix", "norm relative_norm stable_rank random_stable_rank"),
        ),
        Schema("differences", "compare", attrs=("compared", "differs", "left_out"), needed={}),
        Schema(
            "patterns", "label_patterns", kind=xr.DataArray,
            needed=over("pattern sequence position", "patterns") | over("pattern", "pattern"),
            optional=over("sequence position", "token_id"),
        ),
        Schema(
            "token_map", "token_map",
            needed=over("token axis", "map") | over("token", "sequence position"),
            optional=over("token", "token_id pattern"),
        ),
        Schema(
            "map_stability", "map_stability",
            needed=over("token", "jaccard sequence position") | over("", "agreement chance"),
            optional=over("token", "token_id"),
        ),
        Schema(
            "clusters", "clusters",
            needed=over("token", "cluster sequence position")
            | over("label", "label size n_sequences conductance reference beyond_chance"),
            optional=over("token", "token_id") | over("label", "probability seed_token"),
        ),
        Schema(
            "cluster_summary", "cluster_summary",
            needed=over("label", "size") | over("label component", "mean")
            | over(
                "label pattern",
                "count share share_outside odds_ratio odds_low odds_high p q p_token",
            ),
        ),
        Schema(
            "cluster_stability", "cluster_stability",
            needed=over("", "rand information n_both")
            | over("label", "jaccard match jaccard_chance"),
        ),
        Schema(
            "influence", "influence", attrs=("component", "unit", "kind", "same_probe", "blocks"),
            needed=over("query source", "influence se")
            | over("query", "query_sequence") | over("source", "source_sequence"),
            optional=over("query", "query_position") | over("source", "source_position"),
        ),
        Schema(
            "effects", "ablate", attrs=("intervention", "model", "metric", "units", "cost_sign"),
            needed=over("sequence position", "effect token_id"),
            optional=over("sequence position", "base_loss loss"),  # where that is the metric
        ),
        Schema(
            "composition_scores", "composition_scores", attrs=("chance_score",),
            needed=over(
                "source target through",
                "score z_random p_random q_random z_rotation p_rotation q_rotation",
            ),
        ),
        Schema(
            "composition_on_tokens", "composition_on_tokens", attrs=("n_positions", "left_out"),
            needed=over("source target through", "share se") | over("target", "drive"),
        ),
        Schema(
            "composition_by_component", "composition_by_component", attrs=("edge", "score"),
            needed=over(
                "direction",
                "singular_value squared_score expected_squared_score share expected_share",
            ),
        ),
        Schema(
            "behaviour_scores", "behaviour_scores",
            needed=over("component", f"{_BEHAVIOUR} copying written_share head_type"),
            optional=over("component", _each(_BEHAVIOUR, "{}_se")),
        ),
        Schema(
            "edge_attribution", "edge_attribution",
            needed=over("source target through", "effect"),
        ),
        Schema(
            "stages", "stages", attrs=("flat", "level"),
            needed=over("component", "n_stages staged noise")
            | over("component boundary", _with_interval("boundary_step") + " support")
            | over("component stage", "start end trend probability type")
            | over("component stage", _with_interval("slope"))
            | over("component step", _with_interval("fit")),
            optional=over("component stage", _with_interval("loss_change"))
            | over("component stage pattern", _with_interval("subloss_change")),
        ),
        Schema(
            "transitions", "transitions", attrs=("level",),
            needed=over(
                "observable transition",
                " ".join(map(_with_interval, ("begin", "midpoint", "end", "change"))) + " share",
            ) | over("observable", "n_transitions staged")
            | over("observable step", _with_interval("fit")),
        ),
        Schema(
            "critical_checkpoints", "critical_checkpoints", attrs=("level",),
            needed=over("critical", _with_interval("at_step"))
            | over("critical observable", _with_interval("share"))
            | over("step", _with_interval("speed")) | over("observable", "moves"),
        ),
        Schema(
            "crossing", "crossing", attrs=("one", "other", "level", "notes", "pattern", "share"),
            needed=over("crossing", _with_interval("n") + " favoured shift_per_constant")
            | over("undecided", "from_n to_n") | over("n_grid", "difference difference_se")
            | over(
                "", "loss_difference loss_difference_se llc_difference llc_difference_se"
            ),
        ),
        Schema(
            "limit_llc", "limit_llc",
            needed=over("component", "llc se reach certificate n_parameters verdict")
            | over("component rung", "rung_llc rung_se fit") | over("rung", "ratio"),
        ),
        Schema(
            "phase_diagram", "phase_diagram", attrs=("pattern", "notes"),
            needed=over("share n", "lowest") | over("share n phase", "free_energy probability"),
        ),
        Schema(
            "spectrum", "spectrum", attrs=("settings",),
            needed=over("n_beta gamma component", _SPECTRUM) | over("component", "n_parameters"),
        ),
        Schema(
            "multiplicity", "multiplicity",
            needed=over(
                "gamma component",
                "multiplicity llc llc_se llc_low llc_high rungs decades verdict",
            )
            | over("form gamma component", "misfit form_llc form_llc_se")
            | over("n_beta gamma component", "fit rung_llc rung_se"),
        ),
        Schema(
            "curvatures", "curvatures",
            needed=over("component", _with_errors("stiffness effective_directions"))
            | over("component", "finest verdict")
            | over("curvature component", "directions_low directions_high")
            | over("rung component", _with_errors("smoothed")) | over("rung", "resolution"),
        ),
        Schema(
            "density_of_states", "density_of_states", attrs=("component", "gamma"),
            needed=over(
                "rung", "n_beta overlap free_energy free_energy_se integrated integrated_se "
                "difference difference_se"
            )
            | over("loss", "log_volume log_volume_se"),
        ),
        Schema(
            "faithfulness_curve", "faithfulness_curve",
            needed=over("size", "faithfulness low high") | over("random_ranking size", "random")
            | over("", "cpr cmd cpr_p cmd_p"),
        ),
    )
}  # fmt: skip


def stamp(name: str) -> dict[str, Any]:
    """The attributes that say which result this is and which schema it follows."""
    return {"result": name, "schema": SCHEMAS[name].version}


def stamped(result: Result, name: str) -> Result:
    """A result with its :func:`stamp`, as the function that makes it returns it.

    Raises RuntimeError where it does not hold what its schema says, in that order: a bug.
    """
    wrong = list(_wrong(result, SCHEMAS[name], in_order=True))
    if wrong:
        raise RuntimeError(f"{_call(SCHEMAS[name])} does not follow its schema: {'; '.join(wrong)}")
    result.attrs.update(stamp(name))
    return result


def require(result: Any, *names: str, argument: str, leading: Dims = ()) -> Any:
    """The result, its dimensions in the schema's order; an error where it is not one of ``names``.

    Arrays that name no result are judged by what they hold.

    Args:
        result: what was passed.
        names: of the results that are allowed, keys of :data:`SCHEMAS`.
        argument: how the caller's argument is called.
        leading: of :data:`LEADING`, the dimensions in front that the caller can do with.

    Raises:
        TypeError: something else, or another result.
        ValueError: of another schema version; something was selected away or is missing; a
            dimension in front.
    """
    wanted = " or ".join(_call(SCHEMAS[name]) for name in names)
    if not isinstance(result, xr.Dataset | xr.DataArray | xr.DataTree):
        raise TypeError(f"{argument} must come from {wanted}; got {type(result).__name__}")
    name = result.attrs.get("result")
    if name is not None and name not in names:
        what = f"what {_call(SCHEMAS[name])} returns" if name in SCHEMAS else repr(name)
        raise TypeError(f"{argument} must come from {wanted}; got {what}")
    if name is None:
        schema = min((SCHEMAS[n] for n in names), key=lambda one: len([*_wrong(result, one)]))
    else:
        schema = SCHEMAS[name]
        check_version(name, result.attrs.get("schema", 0), argument)
    if not isinstance(result, schema.kind):
        raise TypeError(
            f"{argument} must be the {schema.kind.__name__} that {wanted} returns; "
            f"got {type(result).__name__}"
        )
    wrong = list(_wrong(result, schema))
    if wrong:
        more = f"; and {len(wrong) - MOST_SAID} more" * (len(wrong) > MOST_SAID)
        raise ValueError(
            f"{argument} must come from {wanted}, whole; it has {'; '.join(wrong[:MOST_SAID])}"
            f"{more}: {_remedy(result, schema, argument)}"
        )
    for dim in LEADING:
        own = schema.of_a_run and dim == "checkpoint"
        if not own and dim not in leading and dim in _all_dims(result, schema):
            raise ValueError(
                f"{argument} has the dimension {dim!r}: choose one, {argument}.sel({dim}=…)"
            )
    return _ordered(result, schema)


def name_of(result: Any, leading: Dims = ()) -> str:
    """The name of a whole result of this version, without a dimension in front; else "".

    ``leading``: of :data:`LEADING`, the dimensions in front that it may have.
    """
    name = str(getattr(result, "attrs", {}).get("result", ""))
    if name not in SCHEMAS:
        return ""
    try:
        require(result, name, argument="result", leading=leading)
    except (TypeError, ValueError):
        return ""
    return name


def check_version(name: str, version: Any, argument: str) -> None:
    """ValueError where a result was written by another version of its schema than this one."""
    schema = SCHEMAS[name]
    if version == schema.version:
        return
    newer = isinstance(version, int) and version > schema.version
    todo = "install that one" if newer else f"make it again with {_call(schema)}"
    raise ValueError(
        f"{argument}: {'a newer' if newer else 'an older'} version of lens_slt made this result "
        f"({name}, schema {version}; this version reads schema {schema.version}): {todo}"
    )


def _call(schema: Schema) -> str:
    return f"{schema.made_by}(…)"


def _dims(result: Any, schema: Schema) -> dict[str, Dims]:
    """Dimensions of every variable, coordinates included, by the name that the schema uses."""
    if isinstance(result, xr.DataTree):
        return {
            f"{node.path}/{name}".lstrip("/"): tuple(map(str, variable.dims))
            for node in result.subtree
            for name, variable in node.to_dataset(inherit=False).variables.items()
        }
    if isinstance(result, xr.DataArray):
        whole = {schema.name: tuple(map(str, result.dims))}
        return whole | {str(name): tuple(map(str, c.dims)) for name, c in result.coords.items()}
    return {str(name): tuple(map(str, v.dims)) for name, v in result.variables.items()}


def _all_dims(result: Any, schema: Schema) -> set[str]:
    return {dim for dims in _dims(result, schema).values() for dim in dims}


def _wrong(result: Any, schema: Schema, *, in_order: bool = False) -> Iterator[str]:
    """What a result lacks or has otherwise, in words."""
    there = _dims(result, schema)
    for pattern, dims in schema.variables.items():
        for name in _expanded(pattern, there):
            if name not in there:
                if pattern in schema.needed:
                    yield f"no {name}{_words(dims)}"
                continue
            order = _order(there[name], dims)
            if order is None or (in_order and order != there[name]):
                yield f"{name}{_words(there[name])} instead of {name}{_words(dims)}"
    yield from (f"no attribute {name!r}" for name in schema.attrs if name not in result.attrs)


def _words(dims: Dims) -> str:
    return f" ({', '.join(dims)})"


def _expanded(pattern: str, there: Mapping[str, Dims]) -> list[str]:
    """The names that a pattern stands for: one for every group at the place of its ``*``."""
    before, star, after = pattern.partition("*")
    if not star:
        return [pattern]
    inside = [name.removeprefix(before) for name in there if name.startswith(before)]
    groups = {name.split("/")[0] for name in inside if "/" in name}
    return [f"{before}{group}{after}" for group in sorted(groups)]


def _order(own: Dims, dims: Dims) -> Dims | None:
    """A variable's dimensions in the schema's order, those in front first; None if others."""
    front = tuple(dim for dim in LEADING if dim in own)
    rest = [dim for dim in own if dim not in front]
    if len(rest) != len(dims):
        return None
    for order in permutations(rest):
        if all(one in allowed.split("|") for one, allowed in zip(order, dims, strict=True)):
            return (*front, *order)
    return None


def _ordered(result: Any, schema: Schema) -> Any:
    """The result with every declared variable in the schema's order."""
    turned = {}
    for name, own in _dims(result, schema).items():
        order = _order(own, schema.variables[name]) if name in schema.variables else own
        if order is not None and order != own:
            turned[name] = order
    if not turned:
        return result
    if isinstance(result, xr.DataArray):
        return result.transpose(*turned[schema.name])
    if isinstance(result, xr.DataTree):
        raise ValueError(f"{schema.name}: {next(iter(turned))} must not be transposed")
    return result.assign({name: result[name].transpose(*order) for name, order in turned.items()})


def _remedy(result: Any, schema: Schema, argument: str) -> str:
    """What to do about a result that is not whole."""
    there = _all_dims(result, schema)
    for dims in schema.needed.values():
        for dim in dims:
            if not there & {*dim.split("|")} and "*" not in dim:
                return f"a selection must keep its dimension, as {argument}.isel({dim}=[0]) does"
    return f"pass what {_call(schema)} returned"
