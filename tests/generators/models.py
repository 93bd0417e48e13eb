"""Answers of a later version, read by the models which datamodel-code-generator generates."""

from __future__ import annotations

import sys

from task_audit_models import Problem, RecordedBody, Task, TaskPageBody

page, task, recorded, problem = sys.argv[1:]

print(TaskPageBody.model_validate_json(page).tasks[0].request_text)
print(Task.model_validate_json(task).status.value)
print(RecordedBody.model_validate_json(recorded).recorded)
print(Problem.model_validate_json(problem).title)
