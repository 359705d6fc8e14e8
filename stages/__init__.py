"""How each step does its work, one folder per kind of work.

Artifacts and a configuration come in, one artifact goes out (``stages.base``). It imports Ray, torch and vLLM where a
stage runs, and nothing from ``pipelines`` or ``clusters``.
"""
