"""What is trained in place of a prompt: LoRA pairs and soft prompts as one small tree (`adapter`),
and the ways to start a soft prompt (`soft_prompt`). The models import the tree from here, as may
everything above; nothing here knows of a model, only of arrays and of module names.
"""
