// SPDX-License-Identifier: Apache-2.0

/** What a driver is told when it is started. */

/** What a driver may need to know to be started. Each field is also a placeholder of OPENSHELL_DRIVER_CMD. */
export interface DriverContext {
  /** Where it must serve. */
  socket: string;
  /** Where sandboxes on this machine reach the gateway: scheme, host and port. */
  endpoint: string;
  port: number;
  network: string;
  podman_socket: string;
  sandbox_image: string;
  supervisor_image: string;
  /** The path of a supervisor that any driver can start: the compiled fake. */
  supervisor: string;
  stop_timeout: string;
  /** A private folder for its state. */
  state: string;
  /** CA, certificate and key with which a sandbox proves itself to a gateway with mTLS; empty without TLS. */
  tls_ca: string;
  tls_cert: string;
  tls_key: string;
}
