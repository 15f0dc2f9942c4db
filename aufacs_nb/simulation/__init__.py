"""Virtual people: heads, bodies, skin, cameras, and whole databases of them with exact intensities."""
