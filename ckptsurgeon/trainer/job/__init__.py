"""A job: model, task, data, settings and initial weights, put together."""
