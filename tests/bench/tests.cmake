# Operators measured without a model; also the check of machines that lack the
# libraries of the tests. Built always, so that it keeps building.
if(TARGET kernels)
  foreach(name linear attend delta)
    add_executable(bench_${name} ${CMAKE_CURRENT_LIST_DIR}/${name}.c
      ${PROJECT_SOURCE_DIR}/node/peak.c)
    target_link_libraries(bench_${name} PRIVATE kernels)
    target_compile_options(bench_${name} PRIVATE ${STRICT_TESTS})
  endforeach()
endif()
