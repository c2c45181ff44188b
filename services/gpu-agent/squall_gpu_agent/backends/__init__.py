"""Backends: one module each, all behind `squall_gpu_agent.backend.Backend`."""
