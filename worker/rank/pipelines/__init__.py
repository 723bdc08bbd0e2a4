"""Which module serves which task. Each has load(spec, source, device) and
run(pipeline, request, prompt, seed, progress) -> frames, uint8 [F, H, W, 3], on the lead rank."""

PIPELINES: dict[str, str] = {
    "text-to-image": "worker.rank.pipelines.text_to_image",
    "text-to-video": "worker.rank.pipelines.text_to_video",
}
