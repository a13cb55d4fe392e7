"""Small transformers with planted circuits: weights written by hand, so that the truth is known.

Whoever infers circuits wants to know how often they are right. ``plant("induction")`` is an
attention-only transformer in which two heads do induction and all others do nothing for it, with
tokens, the labels of the tokens that need the circuit, and hypotheses known to be false.

============ =====================================================================================
family       the circuit, and the tokens it is for (the planted pattern)
============ =====================================================================================
induction    previous-token head → induction head through K; tokens whose bigram stood earlier
skip_trigram one head, "a … b → c" for several triples; those c
multigram    one head, "a x → c" with any x between; those c
brackets     a head that counts open brackets by type → through Q a head that attends to the last
             opener of an open type; closing brackets
spread       induction with two previous-token heads, each for half of the vocabulary
backup       induction with two induction heads, either of which does most of the work alone
decoy        no circuit: a head reads strongly what an earlier one writes, and nothing comes of it
empty        no circuit
============ =====================================================================================

The hard families (:func:`lens_slt.hard_suite`) have what circuits of trained models have:

============ =====================================================================================
family       what is hard
============ =====================================================================================
crowd        induction by all heads of a layer but one or two, each for its own words (seeds 0 and 1
             of every four) or all for all, each with its share of the output; 4 to 6 heads a layer
few_heads    induction in models of one or two heads a layer: hardly any are left to compare with
dead_head    induction, and a head that composes with the previous-token head and attends as the
             induction head does, but whose values only read directions that nothing writes
positions    induction with large learned positions and no norm: heads before the last layer move
             them, and what they write cancels position by position, so that replacing any of them
             by its overall mean breaks the model, by its mean at every position only the circuit
through_mlp  previous-token head → MLP → induction head through K; nothing passes by the MLP, and
             all layers have one
answer_only  induction, or a skip trigram (seeds 2 and 3 of every four), where only the last
             prediction counts (``weights``); these are the pattern, ``all``
============ =====================================================================================

All other heads are distractors: ordinary attention patterns, weights as large as the circuit's, and
outputs that hardly anything reads. W_U's gains are those of the least loss, so predictions are as
confident as the data allow. Even seeds have no normalisation, odd ones ``LNPre``. Seeds 0 and 1 of
every four also get a pair of heads as in ``decoy``, except ``crowd``, ``few_heads`` and
``positions``.
"""

from lens_slt.circuits.planted.instances import (
    FAMILIES,
    HARD_FAMILIES,
    PlantedCircuit,
    hard_suite,
    plant,
    planted_suite,
)

__all__ = ["FAMILIES", "HARD_FAMILIES", "PlantedCircuit", "hard_suite", "plant", "planted_suite"]
