"""What the words of a report mean: each with the form by which it is found in a text."""

from __future__ import annotations

GLOSSARY = {
    "refined LLC, rLLC, λ̂": (
        r"λ̂|rLLC|[Rr]efined LLC",
        "refined local learning coefficient: nβ times the mean rise of the loss when a component's "
        "weights are sampled near their trained values, all others frozen. No unit; the higher, "
        "the more tightly the loss holds these weights in place",
    ),
    "nβ": (r"nβ", "inverse temperature: how much a rise of the loss counts in the sampling"),
    "γ": (r"γ", "localization: how strongly the sampling is pulled back to the trained weights"),
    "ε, ε₀": (r"ε", "size of a sampling step"),
    "chain, draw": (
        r"\b[Cc]hains?\b|\b[Dd]raws?\b",
        "one course of the sampling; one set of weights that it keeps",
    ),
    "± (standard error, SE)": (
        r"±|[Ss]tandard errors?|\bSE\b",
        "how far the sampling alone lets a number stray, one standard deviation",
    ),
    "R̂": (r"R̂", "spread of the chains together over that within each; 1 where they agree"),
    "ESS": (r"\bESS\b", "effective draws: how many independent ones the draws are worth"),
    "certified": (
        r"[Cc]ertif\w+|[Dd]efect\b",
        "the run has tested itself: its defect, a mean that is zero for the exact posterior, "
        "allows λ̂ to be off by at most 10 %, or by less than 0.1",
    ),
    "healthy": (
        r"[Hh]ealthy",
        "all chains level off, agree, and stand above their noise; and the number is certified",
    ),
    "probe": (r"\b[Pp]robes?\b", "tokens whose losses are recorded at every draw"),
    "pattern": (r"\b[Pp]atterns?\b", "a labelled class of tokens in context, such as induction"),
    "nats": (r"\bnats\b", "unit of the loss: −log of the probability of the right token"),
    "susceptibility, χ": (
        r"χ|[Ss]usceptibilit",
        "how a component's loss responds to more weight on a token: below zero is expression, "
        "above zero suppression",
    ),
    "mode, loading, score": (
        r"\b[Mm]odes?\b",
        "a pattern over components (its loadings) that goes with one over tokens (their scores)",
    ),
    "split-half, reliability": (
        r"[Ss]plit-half|[Rr]eliability",
        "correlation over tokens of what one half of the draws gives with the other half",
    ),
    "AUC": (
        r"\bAUC\b",
        "chance that a token of the pattern has a higher value than another; 0.5: no difference",
    ),
    "p": (r"\bp\b", "chance of an effect at least as large if there were none"),
    "q": (r"\bq\b", "p-value corrected for the number of tests: the share of false finds"),
    "circuit": (
        r"\b[Cc]ircuits?\b",
        "heads, and edges between them, that are claimed to do what a pattern of tokens needs",
    ),
    "ablation": (
        r"[Aa]blat\w+",
        "replacing what a component writes, or what another reads of it, mostly by its mean",
    ),
    "held, failed, undecided": (
        r"\bheld\b|\bfail(?:s|ed)\b",
        "a test holds if its effect reaches the least effect, its corrected p is below 0.05 and it "
        "beats 95 % of its null; it fails if its interval lies below the least effect; else it is "
        "undecided",
    ),
    "null": (r"\b[Nn]ull\b", "the same measured on sets of other components, or other paths"),
    "necessity": (
        r"[Nn]ecessity",
        "what ablating the circuit costs the pattern's tokens beyond matched others",
    ),
    "sufficiency": (
        r"[Ss]ufficiency",
        "share of the pattern's loss that comes back with all other paths of the kinds that the "
        "edges are of ablated",
    ),
    "minimality": (r"[Mm]inimality", "whether some context needs the component"),
    "faithfulness": (
        r"[Ff]aithfulness",
        "share of the pattern's loss that the kept components recover, all others ablated",
    ),
    "CPR, CMD": (r"\bCPR\b|\bCMD\b", "area under the faithfulness curve; area between it and 1"),
    "composition": (
        r"\b[Cc]omposition\b",
        "how much of what one component writes another reads, judged by weights or activations",
    ),
    "self-repair": (r"[Ss]elf-repair", "joint ablation against the sum of single ones"),
    "completeness, equivalence, independence": (
        r"\b(?:completeness|equivalence|independence)\b",
        "whether circuit and model lose alike with parts removed; whether they answer alike; "
        "whether the rest carries nothing",
    ),
    "grown, shrunk": (
        r"\b(?:grown|shrunk)\b",
        "what the best further part would add to sufficiency; what the least missed part brings",
    ),
    "induction (score), prefix matching": (
        r"[Ii]nduct\.|[Pp]refix matching|\bprefix\b",
        "logits added to the token that followed earlier; attention to it, on repeated tokens",
    ),
    "stage": (
        r"\b[Ss]tages?\b",
        "part of training within which λ̂ changes at one slope over the log of steps",
    ),
    "transition": (r"\b[Tt]ransitions?\b", "steps within which an observable changes level"),
    "adjusted Rand index": (
        r"Rand index", "agreement of two clusterings; 0 by chance, 1 if they are the same",
    ),
    "phase": (
        r"\b[Pp]hases?\b", "a region of weights with a loss, a learning coefficient and a volume"
    ),
    "free energy": (
        r"[Ff]ree energy", "n times the loss plus λ log n, and further terms: lowest where the "
        "posterior of n data stands",
    ),
    "similarity, partner": (
        r"[Ss]imilarity",
        "correlation of two components on the same tokens, corrected for noise; the most similar "
        "component of the other model",
    ),
    "wish": (
        r"\b[Ww]ish\b", "a change of observables that the weights of the data are to bring about"
    ),
    "condition number": (
        r"[Cc]ondition number", "how much noise the solution magnifies; 1 is least"
    ),
    "UMAP": (r"UMAP", "a map that keeps neighbours together and little else"),
}  # fmt: skip
