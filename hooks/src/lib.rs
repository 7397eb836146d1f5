//! The spool format between libvirt's hook and the service.
