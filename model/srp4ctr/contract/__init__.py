"""What crosses a border: schema and transforms, user state bytes, Redis keys, bundle manifest, HTTP types, errors.

Imports numpy, pydantic and the standard library only, so that every other part can rely on it.
"""
