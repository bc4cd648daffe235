"""Starts, resumes, trains, checks and reports runs."""
