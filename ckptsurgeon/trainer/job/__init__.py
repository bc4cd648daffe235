"""A job: model, task, data, settings and initial weights of one run."""
