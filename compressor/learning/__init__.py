"""Everything that trains: the loop, distillation, transfer learning, adapters, not forgetting."""
