"""From seeds to label sets: maps refined, decided and written, image by image."""
