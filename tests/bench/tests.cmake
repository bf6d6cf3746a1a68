# Products measured without a model; also the check of machines that lack the
# libraries of the tests. Built always, so that it keeps building.
if(TARGET kernels)
  add_executable(bench_linear ${CMAKE_CURRENT_LIST_DIR}/linear.c
    ${PROJECT_SOURCE_DIR}/node/peak.c)
  target_link_libraries(bench_linear PRIVATE kernels)
  target_compile_options(bench_linear PRIVATE ${STRICT_TESTS})
endif()
