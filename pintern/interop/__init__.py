"""The formats that others serve and train in: PEFT's LoRA and prompt-tuning directories, merged
safetensors, the model card beside them, and what vLLM takes of it. `write.write_export` writes,
`read.read_adapter` reads. May import `adapters` and `models`; knows neither tasks nor runs: what a
card tells of them is handed in.
"""
