"""The network in torch. It only computes: the jobs in `srp4ctr_offline` train it, `export` turns it into ONNX.

Shape letters, used as suffixes of names throughout: U users, L events of a history, F fields, C candidates,
Q query tokens, D model width, N heads, H head width (N * H = D), W code columns, V codes of a multi-valued field.
The history that a network sees has one position more than L, the start token; such tensors say S = L + 1.
"""
