"""Nothing: stands where a requirement asks for torchaudio and no sound is processed."""
