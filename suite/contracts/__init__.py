"""What a plugin promises, as checks that anyone can run: `model.MODEL_CHECKS` and `task.TASK_CHECKS`.

Each check is a function named as a claim, with the claim in words as its docstring; it takes a plugin and raises
`suite.errors.ContractViolation` if the claim does not hold. Import from the two modules: only the first needs torch.
"""
