"""What the driver says about the devices a run holds. Light: no torch, no pydantic.

The sampler process imports this package and the NVML binding, nothing else. Nothing here raises
for what a machine or a driver may do: a question is answered with a value or with
:class:`~bench.devices.answer.Unavailable` and the reason in words, never with 0 for missing.
"""
