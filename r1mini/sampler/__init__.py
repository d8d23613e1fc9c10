"""The sampler: continuous batching (`sampler`), drawing tokens (`sampling`), a shared-prompt
KV cache (`kv_cache`), and a fused single-token forward pass (`decode`, `cuda_graphs`)."""
