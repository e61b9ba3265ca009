"""Operations: attention, losses, positions, caches; functions of arrays on any mesh."""
