"""A user's script, for `mypy --strict` against the installed package: it finds the types."""

import dynquant

model = dynquant.load_model("tests/data/tiny-books")
plan = dynquant.make_plan(model, "dynamic-4bit", split=dynquant.Split(max_tensors=20))
sizes: dict[str, int] = {tensor.name: tensor.n_bytes for tensor in plan.tensors}
result: dynquant.Result = plan.write("typed.gguf", threads=2)
loss: float = result.loss.weighted if result.loss else 0.0
hashes: tuple[str, ...] = result.sha256
bits: float = dynquant.types()["Q4_K"].bpw
print(sum(sizes.values()), loss, hashes, bits, dynquant.verify(result.path).is_sound)
