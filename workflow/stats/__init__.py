"""Statistics as functions of arrays, on scipy and statsmodels: one place, and no number made by hand.

    samples    replicates of one condition; sampling error of a cell     rounding   printed figures turned into data
    tests      estimates, intervals, effect sizes, corrections           blocked    several pipeline seeds as blocks
    contrasts  pairs, declared contrasts, the 2 x 2                      power      what a design could have shown
    table      the long scores table                                     items      scores on clean items
    text       figures as text

Claims, from their form to their sentence:

    claims_schema -> evidence -> claims_rules (comparisons; verdicts: the region rules; families: who shares an alpha)
    -> confounding -> claims -> claims_text;  results: what comes out;  chance: how often by chance

The last axis of a sample holds its replicates. Leading axes, where there are any, are what printed digits allow, or
simulated data; every function broadcasts over them.
"""
