"""A column for NVIDIA NeMo Data Designer: each row is answered by the model that a router picks.

Data Designer finds it by the entry point `data_designer.plugins`. It is no dependency: only this
room imports it, file by file, since it loads plug-ins while it is being imported itself.
"""
