"""Statistics as functions of arrays, on scipy and statsmodels: one place, and no number made by hand.

    samples    replicates of one condition; sampling error of a cell     rounding   printed figures turned into data
    tests      estimates, intervals, effect sizes, corrections           blocked    several pipeline seeds as blocks
    contrasts  pairs, declared contrasts, the 2 x 2                      power      what a design could have shown
    items      scores on clean items, per-item averages                  table      the long scores table
    verdicts   the region rules                                          evidence   what claims are judged on
    claims     sentences whose verdict comes from the data (claims_schema: their form)
    published  the published table, loaded                               text       figures as text

The last axis of a sample holds its replicates. Leading axes, where there are any, are what printed digits allow, or
simulated data; every function broadcasts over them.
"""
