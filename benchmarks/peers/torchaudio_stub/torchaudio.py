"""Empty: for requirements of torchaudio where no audio is processed."""
