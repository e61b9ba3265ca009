"""From traffic back to a better model: capture, drift, learning, the gate, promotion."""
