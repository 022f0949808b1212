// SPDX-License-Identifier: Apache-2.0

/** How the things of a run are known: marks on processes, labels on the engine, names of folders. */

/** In the environment of every process that a run starts: how a sweep knows them. */
export const RUN_MARK = "OPENSHELL_E2E_RUN";

/** In the environment of a command of `with`, which is its user's: it is ended with the run only if `with` was killed. */
export const COMMAND_MARK = "OPENSHELL_E2E_WITH";

/** On every network and container that a run makes itself. */
export const RUN_LABEL = "openshell-e2e.run";

/** Whether a name can be a run's id. */
export const isRunId = (name: string): boolean => /^[0-9a-f]{8}$/.test(name);

/** A run, as far as its id and its folder tell. */
export interface RunFolder {
  readonly id: string;
  readonly folder: string;
  /** Whether its folder is there, and is the one that the run made. */
  readonly isThere: boolean;
}
