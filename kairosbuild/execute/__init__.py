"""From a plan to results: runner, sandbox, executors."""
