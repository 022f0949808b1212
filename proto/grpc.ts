// SPDX-License-Identifier: Apache-2.0

/**
 * grpc-js: the codes of its statuses, and `grpc()`, which is all of it. That is loaded when it is used first, since to
 * load it takes longer than all else that a command does before its stack starts.
 */
import type * as grpcJs from "@grpc/grpc-js";

export { Status as status } from "@grpc/grpc-js/build/src/constants.js";

export const grpc = (): typeof grpcJs => require("@grpc/grpc-js");
