# Where a test makes base's allocations fail, the linker redirects them.
if(TARGET test_base_nomem)
  target_link_options(test_base_nomem PRIVATE
    -Wl,--wrap=malloc,--wrap=calloc,--wrap=aligned_alloc,--wrap=strdup)
endif()
