"""Which module serves which task. Each has load(spec, source, device, **parts),
where parts are components that need not be loaded any more, and
run(pipeline, request, prompt, seed, progress), which yields frames, uint8 [F, H, W, 3], on the lead
rank and must be run to its end on the others."""

HERE = "worker.rank.pipelines"
PIPELINES: dict[str, str] = {
    "text-to-image": f"{HERE}.text_to_image",
    "text-to-video": f"{HERE}.text_to_video",
    "image-to-image": f"{HERE}.any_pipeline",
    "inpaint": f"{HERE}.any_pipeline",
    "image-to-video": f"{HERE}.image_to_video",
}
