// Fibers: stacks that one operating-system thread switches between. Hand-written for x86-64, where
// swapcontext() would make two system calls a switch; elsewhere swapcontext().
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace host {

constexpr size_t kStackBytes = 256 * 1024;

#ifdef __x86_64__

struct Context {
  void* stack_pointer = nullptr;
};

// Saves the callee-saved registers and the stack pointer, and takes those that `to` saved.
extern "C" void effv2_host_switch(void** from, void* to);
asm(R"(
.text
.globl effv2_host_switch
.type effv2_host_switch, @function
effv2_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size effv2_host_switch, .-effv2_host_switch
)");

inline void switch_to(Context& from, Context& to) {
  effv2_host_switch(&from.stack_pointer, to.stack_pointer);
}

inline void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // keeps the stack aligned as a call would leave it
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

#else

struct Context {
  ucontext_t context;
};

inline void switch_to(Context& from, Context& to) {
  swapcontext(&from.context, &to.context);
}

inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = kStackBytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}

#endif

// A stack below which nothing can be written.
inline char* new_stack() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
    std::perror("a fiber's stack");
    std::abort();
  }
  return static_cast<char*>(memory) + page;
}

}  // namespace host
