"""Configs of PromptIntern (2407.02211) on several tasks."""
