"""What every chapter stands on: vocabulary, files, the device, layers, projections, the figure template."""
