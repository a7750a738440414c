"""`hf-sharpness compare`: does a sharpness-aware method help on this task, and what does it cost?

From the question to the answer, in this order: `arms` and `points` (what is compared, with which settings), `plan`
(every run of the study), `execution` and `work` (Optuna's storage and the order of the runs), `recipe_runs` and
`script_runs` (one run), `choice` (tuning), `statistics`, `verdict` and `judge` (what the data bear), `results`,
`tables` and `picture` (what is left).
docs/compare.md describes the protocol, and the reasons for it.
"""
