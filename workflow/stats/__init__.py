"""Statistics as functions of arrays, on scipy and statsmodels, and claims that are judged by them.

The last axis of a sample holds its replicates. Leading axes, where there are any, are what printed digits allow, or
simulated data; every function broadcasts over them.

    table, rounding -> samples -> tests, blocked, contrasts;  power, thresholds;  text: figures as text
    claims_schema, evidence -> claims_rules (comparisons; verdicts: the region rules)
    -> confounding -> claims -> claims_text;  results: what comes out;  chance: how often by chance
"""
