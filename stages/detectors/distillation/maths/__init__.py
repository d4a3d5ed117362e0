"""Shared parts of the student-teacher family."""
