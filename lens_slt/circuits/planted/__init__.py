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

All other heads are distractors: ordinary attention patterns, weights as large as the circuit's, and
outputs that hardly anything reads. W_U's gains are those of the least loss, so predictions are as
confident as the data allow. Even seeds have no normalisation, odd ones ``LNPre``. Seeds 0 and 1 of
every four also get a pair of heads as in ``decoy``.
"""

from lens_slt.circuits.planted.instances import FAMILIES, PlantedCircuit, plant, planted_suite

__all__ = ["FAMILIES", "PlantedCircuit", "plant", "planted_suite"]
