/*
 * Linux in user mode asks ptrace for its processes' floating point registers with room for those that it knew of when it was built (AVX-512).
 * A processor that has more (AMX) has the host's kernel refuse that, and no process ever runs. Loaded before it, this asks for
 * all of them and hands on as many as there is room for.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NT_X86_XSTATE 0x202

/* Too large for the stacks that this runs on; only one thread ever traces. */
static char whole[1 << 16];

long ptrace(enum __ptrace_request request, ...)
{
    static long (*next)(int, ...);
    va_list list;
    va_start(list, request);
    int pid = va_arg(list, int);
    void *address = va_arg(list, void *);
    void *data = va_arg(list, void *);
    va_end(list);
    int gets = request == PTRACE_GETREGSET;
    if ((!gets && request != PTRACE_SETREGSET) || (long)address != NT_X86_XSTATE) {
        if (!next)
            next = (long (*)(int, ...))dlsym(RTLD_NEXT, "ptrace");
        return next(request, pid, address, data);
    }
    struct iovec *part = data;
    struct iovec all = { whole, sizeof whole };
    long failed = syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &all);
    if (failed)
        return failed;
    size_t length = part->iov_len < all.iov_len ? part->iov_len : all.iov_len;
    if (gets) {
        memcpy(part->iov_base, whole, length);
        part->iov_len = length;
        return 0;
    }
    memcpy(whole, part->iov_base, length);
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, address, &all);
}
