// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fiqa_fast::model {

// From here on AMX's instructions, which this processor refuses, are executed by the model in
// tiles.h: the very machine code, operands and addresses as the assembler encoded them.
void execute_tile_instructions();

}  // namespace fiqa_fast::model
