"""The build of recgrela: the PEP 517 hooks that pip, uv and build call, and the plan that setup.py follows.

Uses only the standard library, since it runs before anything is installed.
"""
