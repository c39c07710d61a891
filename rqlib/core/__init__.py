"""What every chapter builds on: vocabulary, files, the device, layers, projections, the figure template."""
