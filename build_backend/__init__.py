"""How recgrela is built: the PEP 517 hooks that pip, uv and build call, and the plan that setup.py follows.

Standard library only: this runs before anything is installed.
"""
